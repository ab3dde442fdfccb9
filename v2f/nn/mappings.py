"""The mapping networks by choice: ``system.mapping`` (a configuration with the key ``net``) -> a MappingNetwork."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from v2f.config import default_net
from v2f.nn.ecapa_mapping import ECAPAMapping
from v2f.nn.mapping import MappingNetwork, StyleMapping
from v2f.nn.vector_mapping import LinearMapping, VectorCascade

MappingConfig = Annotated[
    Annotated[
        StyleMapping.Config | ECAPAMapping.Config | LinearMapping.Config | VectorCascade.Config,
        Field(discriminator="net"),
    ],
    default_net("vec2style"),
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
