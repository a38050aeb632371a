"""How property tests run, all of them."""

from hypothesis import HealthCheck, settings

# A machine that is busy with other things says nothing of the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
