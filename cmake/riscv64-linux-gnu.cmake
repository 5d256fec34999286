# 64-bit RISC-V.
set(KIVI_TRIPLET riscv64-linux-gnu)
set(KIVI_QEMU riscv64)
set(CMAKE_SYSTEM_PROCESSOR riscv64)
include(${CMAKE_CURRENT_LIST_DIR}/linux-gnu.cmake)
