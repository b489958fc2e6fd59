"""What a device is and how fast it is: presets, calibration of this machine, the time of one kernel."""
