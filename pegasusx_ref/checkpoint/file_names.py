"""The names of a checkpoint's files, as transformers and PEFT write them."""

CONFIG, GENERATION = "config.json", "generation_config.json"
SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"  # behind the name of weights that are in shards
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
SPIECE_MODEL, TOKENIZER_JSON = "spiece.model", "tokenizer.json"
TOKENIZERS = (SPIECE_MODEL, TOKENIZER_JSON)  # the first one that exists is read
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP, ADDED_TOKENS = "special_tokens_map.json", "added_tokens.json"
