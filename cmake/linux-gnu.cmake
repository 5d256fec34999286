# Cross-building for Linux with a GNU toolchain, as Debian's crossbuild-essential-* packages have it.
# The files beside this one name the architecture and include it:
#
#   cmake -B build/aarch64 -DKIVI_BUILD_TESTS=OFF --toolchain cmake/aarch64-linux-gnu.cmake
#
#   KIVI_TRIPLET  the toolchain's prefix, also the directory under /usr/lib of the architecture's libraries
#   KIVI_QEMU     the emulator's name for it
#   KIVI_SYSROOT  (optional, from the command line) a tree of packages unpacked beside the system's,
#                 where libraries that only the tests need are looked for: cmake/deps.sh fills it

set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_C_COMPILER ${KIVI_TRIPLET}-gcc)
set(CMAKE_CXX_COMPILER ${KIVI_TRIPLET}-g++)
set(CMAKE_LIBRARY_ARCHITECTURE ${KIVI_TRIPLET})

# Checks of the compiler run in projects of their own, which have to find the same.
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES KIVI_SYSROOT)

set(CMAKE_FIND_ROOT_PATH /usr/${KIVI_TRIPLET})
if(KIVI_SYSROOT)
    list(PREPEND CMAKE_FIND_ROOT_PATH ${KIVI_SYSROOT})
endif()
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)

# pkg-config of the build machine, with the target's files and their paths under the tree.
set(ENV{PKG_CONFIG_SYSROOT_DIR} "${KIVI_SYSROOT}")
set(ENV{PKG_CONFIG_LIBDIR}
    "${KIVI_SYSROOT}/usr/lib/${KIVI_TRIPLET}/pkgconfig:${KIVI_SYSROOT}/usr/share/pkgconfig")

find_program(KIVI_EMULATOR NAMES qemu-${KIVI_QEMU} qemu-${KIVI_QEMU}-static
    DOC "User-mode emulator that runs the tests")
if(KIVI_EMULATOR)
    set(CMAKE_CROSSCOMPILING_EMULATOR "${KIVI_EMULATOR};-L;/usr/${KIVI_TRIPLET}")
endif()
