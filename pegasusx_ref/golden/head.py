"""From the decoder's last hidden state to probabilities and the training loss. [spec 11]"""

import numpy as np

IGNORED_LABEL = -100


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Compute the logarithm of the softmax without overflow or loss of small probabilities. [spec 11.1]

    Args:
        logits: (..., V).

    Returns:
        Log-probabilities (..., V).
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy(logits_BLV: np.ndarray, labels_BL: np.ndarray) -> np.ndarray:
    """Average the negative log-probability of the labels, skipping those that are -100. [spec 11.2]

    Padding counts like any other label unless it is -100.

    Args:
        logits_BLV: scores of the vocabulary at every target position (B, L, V).
        labels_BL: token ids in [0, V) or -100 (B, L); at least one is not -100.

    Returns:
        The loss, a scalar array, in nats a label.

    Source: HF `CrossEntropyLoss` in `PegasusXForConditionalGeneration.forward`.
    """
    counted_BL = labels_BL != IGNORED_LABEL
    targets_BL1 = np.where(counted_BL, labels_BL, 0)[:, :, None]
    log_probs_BL = np.take_along_axis(log_softmax(logits_BLV), targets_BL1, axis=2)[:, :, 0]
    return -log_probs_BL[counted_BL].mean()


def shift_tokens_right(labels_BL: np.ndarray, pad_token_id: int, decoder_start_token_id: int) -> np.ndarray:
    """Shift the labels right by one, so that the decoder sees the tokens before the one it has to predict. [spec 11.3]

    Args:
        labels_BL: token ids, -100 where no loss is taken (B, L).
        pad_token_id: takes the place of -100.
        decoder_start_token_id: the first input token.

    Returns:
        Decoder input ids (B, L).

    Source: HF `shift_tokens_right`.
    """
    ids_BL = np.roll(labels_BL, 1, axis=1)
    ids_BL[:, 0] = decoder_start_token_id
    return np.where(ids_BL == IGNORED_LABEL, pad_token_id, ids_BL)
