"""The state of registries for monitoring systems. Each module needs a package that the library does not install."""
