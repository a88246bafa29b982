// Whether the matrix units can be used. See amx_detect.cpp.
#pragma once

// `AMX_STATES` of native.py says them in words.
enum AmxState { AMX_READY = 0, AMX_NOT_COMPILED = 1, AMX_NO_CPU = 2, AMX_NO_SYSTEM = 3, AMX_NO_PERMISSION = 4 };

AmxState amx_state();
// Ends the process with a message if this thread may not use tile registers.
void amx_require_permission();
