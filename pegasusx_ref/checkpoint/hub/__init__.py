"""Names of the Hugging Face Hub: the files of a repository, downloaded into the Hub's cache and checked. [spec 14.8]"""

from pegasusx_ref.checkpoint.hub.files import Kind
from pegasusx_ref.checkpoint.hub.lookup import HubOptions, check_options, download, is_hub_name

__all__ = ["HubOptions", "Kind", "check_options", "download", "is_hub_name"]
