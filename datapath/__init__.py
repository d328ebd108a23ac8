"""The reload pipeline: compile, load, migrate, attach, route, roll back. It knows neither labs nor pods nor pytest."""
