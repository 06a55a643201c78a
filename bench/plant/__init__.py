"""The virtual cabinet: physics, device emulators and paced wires, compiled; shares no decoder with hal."""
