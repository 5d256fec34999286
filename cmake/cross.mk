# Tests on other architectures, under emulators. Part of the Makefile.
.PHONY: check-cross check-cross-long

check-cross: ## The tests on AArch64, emulated, on CPUs with and without each extension
	@cmake/deps.sh build check cross
	@tests/cross.sh short $(cmake_args)

check-cross-long: ## The same, all tests, and on 32-bit Arm, RISC-V and big-endian IBM Z
	@cmake/deps.sh build check cross cross-long
	@tests/cross.sh long $(cmake_args)
