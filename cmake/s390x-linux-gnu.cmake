# IBM Z, big-endian.
set(KIVI_TRIPLET s390x-linux-gnu)
set(KIVI_QEMU s390x)
set(CMAKE_SYSTEM_PROCESSOR s390x)
include(${CMAKE_CURRENT_LIST_DIR}/linux-gnu.cmake)

# In ISO C, GCC computes floats in double on this architecture: tests that compare them with == see that.
set(CMAKE_C_FLAGS_INIT -fexcess-precision=fast)
