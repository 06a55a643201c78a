"""Constants P_..., PP_..., EV_... of state.pxd; params.py turns them into keys and names."""

PORT_COUNT: int
