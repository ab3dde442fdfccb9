"""Train systems that turn a voice into a face, from WebDataset shards, on one core or many GPUs.

For a notebook or a loop of your own: ``load``, ``open_dataset``, ``Loader`` and ``train`` (docs/api.md). They are
imported when they are first used: ``import v2f`` alone takes no time.
"""

__version__ = "0.1.0"
__all__ = ["DataSet", "Loader", "Model", "__version__", "load", "open_dataset", "train"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("v2f.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
