"""Configuration: schema, presets, overrides. Imports neither torch nor ray."""

from soda_dist.config.load import dump_config, load_config, parse_config
from soda_dist.config.schema import RunConfig

__all__ = ["RunConfig", "dump_config", "load_config", "parse_config"]
