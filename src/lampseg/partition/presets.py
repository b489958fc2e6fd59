from lampseg.partition.hardware import Hardware

PRESETS: dict[str, Hardware] = {}
