"""One stage a file: a config class, `main(config)` and `run(main)`. Jobs put the parts of `ramo_ray` together."""
