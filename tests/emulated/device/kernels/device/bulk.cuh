#ifndef KERNELS_DEVICE_BULK_CUH
#define KERNELS_DEVICE_BULK_CUH

#include "tests/emulated/emulator.h"

namespace tdm {

inline void bulk_prefetch(const void*, uint32_t) {
}

} // namespace tdm

#endif
