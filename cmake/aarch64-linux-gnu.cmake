# AArch64.
set(KIVI_TRIPLET aarch64-linux-gnu)
set(KIVI_QEMU aarch64)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
include(${CMAKE_CURRENT_LIST_DIR}/linux-gnu.cmake)
