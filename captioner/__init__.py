"""What writes captions: CoCa with fast decoding behind one captioner interface.

from captioner import load_captioner
captioner = load_captioner("coca_ViT-B-32:mscoco_finetuned_laion2b_s13b_b90k")
captions = captioner(["photo.jpg"])
"""

from importlib import import_module

# Resolved on first use: the command line imports this package without paying for torch.
_HOMES = {
    "Caption": "captioner.captioner",
    "Captioner": "captioner.captioner",
    "load_captioner": "captioner.captioner",
    "CaptionerInfo": "captioner.load",
    "describe_captioner": "captioner.load",
    "load_checkpoint": "captioner.checkpoint",
    "save_captioner": "captioner.checkpoint",
    "DecodeSettings": "captioner.settings",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'captioner' has no attribute {name!r}")
