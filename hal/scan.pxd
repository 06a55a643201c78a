# One Modbus RTU bus on the control thread: walks flat C tables, decodes into Inputs, encodes from Outputs. No Python at run time.

from _core.engine cimport Bus, BusPort
from hal.tables cimport ScanCtx


cdef class BusScan(BusPort):
    cdef ScanCtx c
    cdef readonly object table
    cdef readonly str name
