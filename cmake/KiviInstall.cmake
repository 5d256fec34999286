# What an installation consists of. Components: runtime (the shared library) and development
# (headers, archive, package files), tools, cuda.

include(CMakePackageConfigHelpers)

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/kivi")

install(TARGETS kivi EXPORT kivi-targets
    RUNTIME COMPONENT runtime
    LIBRARY COMPONENT runtime NAMELINK_COMPONENT development
    ARCHIVE COMPONENT development)
install(TARGETS kivi_static EXPORT kivi-static-targets ARCHIVE COMPONENT development)
install(FILES include/kivi/kivi.h "${PROJECT_BINARY_DIR}/include/kivi/version.h"
    DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/kivi" COMPONENT development)

# CMake package. CMake refuses a file of targets if anything that it names is missing, so the
# archive, which distributions may leave out, has its own, and the package looks for it first.
install(EXPORT kivi-targets NAMESPACE kivi:: DESTINATION "${package_dir}" COMPONENT development)
install(EXPORT kivi-static-targets NAMESPACE kivi:: DESTINATION "${package_dir}"
    COMPONENT development)
set(archive "${CMAKE_STATIC_LIBRARY_PREFIX}kivi")
set(KIVI_ARCHIVES "${archive}${CMAKE_STATIC_LIBRARY_SUFFIX}")
foreach(type IN LISTS CMAKE_BUILD_TYPE CMAKE_CONFIGURATION_TYPES)
    string(TOUPPER "${type}" type)
    list(APPEND KIVI_ARCHIVES "${archive}${CMAKE_${type}_POSTFIX}${CMAKE_STATIC_LIBRARY_SUFFIX}")
endforeach()
list(REMOVE_DUPLICATES KIVI_ARCHIVES)
configure_package_config_file(cmake/kivi-config.cmake.in kivi-config.cmake
    INSTALL_DESTINATION "${package_dir}" NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(kivi-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/kivi-config.cmake"
    "${PROJECT_BINARY_DIR}/kivi-config-version.cmake"
    DESTINATION "${package_dir}" COMPONENT development)

# pkg-config: relative to its own place, unless the distribution asked for absolute directories.
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}" OR IS_ABSOLUTE "${CMAKE_INSTALL_INCLUDEDIR}")
    set(KIVI_PC_PREFIX "${CMAKE_INSTALL_PREFIX}")
    set(KIVI_PC_LIBDIR "${CMAKE_INSTALL_FULL_LIBDIR}")
    set(KIVI_PC_INCLUDEDIR "${CMAKE_INSTALL_FULL_INCLUDEDIR}")
else()
    file(RELATIVE_PATH up "${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig" "${CMAKE_INSTALL_PREFIX}")
    string(REGEX REPLACE "/$" "" up "${up}")
    set(KIVI_PC_PREFIX "\${pcfiledir}/${up}")
    set(KIVI_PC_LIBDIR "\${prefix}/${CMAKE_INSTALL_LIBDIR}")
    set(KIVI_PC_INCLUDEDIR "\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}")
endif()
list(TRANSFORM KIVI_PRIVATE_LIBS REPLACE "^([^/].*)" "-l\\1" OUTPUT_VARIABLE pc_libs)
string(JOIN " " KIVI_PC_LIBS ${pc_libs})
configure_file(pkgconfig/kivi.pc.in kivi.pc @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/kivi.pc"
    DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig" COMPONENT development)

# kivi_install_tool(<target>): a program, which finds the library beside it wherever that is moved.
function(kivi_install_tool target)
    file(RELATIVE_PATH libdir "${CMAKE_INSTALL_FULL_BINDIR}" "${CMAKE_INSTALL_FULL_LIBDIR}")
    # In the build as well: the build ID and the room for it depend on what the linker wrote.
    set_target_properties(${target} PROPERTIES
        INSTALL_RPATH "$ORIGIN/${libdir}" BUILD_RPATH_USE_ORIGIN ON)
    install(TARGETS ${target} RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}" COMPONENT tools)
endfunction()
