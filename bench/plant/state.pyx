"""Gives state.pxd's enumerations to Python as module constants (P_..., PP_..., EV_...); params.py makes keys and
names of them.
"""

if P_FIXED_COUNT + MAX_PORTS * N_PORT_PARS != N_PARS:
    raise ImportError(f"state.pxd: N_PARS is {N_PARS}, the lists make {P_FIXED_COUNT + MAX_PORTS * N_PORT_PARS}")

PORT_COUNT = MAX_PORTS
