# 32-bit Arm with VFP.
set(KIVI_TRIPLET arm-linux-gnueabihf)
set(KIVI_QEMU arm)
set(CMAKE_SYSTEM_PROCESSOR armv7l)
include(${CMAKE_CURRENT_LIST_DIR}/linux-gnu.cmake)
