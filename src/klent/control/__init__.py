"""What turns a knob between steps: schedules, the thermostat, the mixture's share, early stopping."""
