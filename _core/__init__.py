"""The deterministic core: process image, control laws, kernel, engine. Imports nothing above it."""
