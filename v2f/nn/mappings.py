"""The mapping networks by choice: ``system.mapping`` (a configuration with the key ``net``) -> a MappingNetwork."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from v2f.nn.ecapa_mapping import ECAPAMapping
from v2f.nn.mapping import MappingNetwork, StyleMapping
from v2f.nn.vector_mapping import LinearMapping, VectorCascade


def _default_net(value: Any) -> Any:
    """Recipes from before there was a choice have no ``net``."""
    return {"net": "vec2style", **value} if isinstance(value, Mapping) else value


MappingConfig = Annotated[
    Annotated[
        StyleMapping.Config | ECAPAMapping.Config | LinearMapping.Config | VectorCascade.Config,
        Field(discriminator="net"),
    ],
    BeforeValidator(_default_net),
]


def build_mapping(config: MappingConfig, channels: Sequence[int], n_styles: int, style_dim: int) -> MappingNetwork:
    """The mapping of a configuration, for an encoder whose maps have ``channels``."""
    if isinstance(config, ECAPAMapping.Config):
        return ECAPAMapping(config, channels, n_styles, style_dim)
    if isinstance(config, LinearMapping.Config):
        return LinearMapping(config, channels, n_styles, style_dim)
    if isinstance(config, VectorCascade.Config):
        return VectorCascade(config, channels, n_styles, style_dim)
    return StyleMapping(config, channels, n_styles, style_dim)
