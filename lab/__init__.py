"""The emulated node, its agent, its traffic, and the tools that observe and measure it."""
