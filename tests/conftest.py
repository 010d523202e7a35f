"""What every test goes by."""

from hypothesis import settings

# A deadline would assert a time, and a busy machine is no defect.
settings.register_profile("fleetopt", deadline=None)
settings.load_profile("fleetopt")
