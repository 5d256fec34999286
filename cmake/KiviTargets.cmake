# How the project's targets are made: one set of flags for all, and what the libraries are put
# together from.

include(CheckCCompilerFlag)
include(CheckLinkerFlag)

# Flags of everything that is compiled here. Contraction to fused multiply-add would make packed
# codes depend on the compiler, so it is off everywhere, not only in quantization. Fast math, which
# flags of another build may bring, would compile the tests for infinities and NaN away. Some
# compilers restore their own default of contraction with it, so it comes first.
add_library(kivi_flags INTERFACE)
if(NOT MSVC)
    target_compile_options(kivi_flags INTERFACE -fno-fast-math -ffp-contract=off -Wall -Wextra -Wshadow
        $<$<COMPILE_LANGUAGE:C>:-Wstrict-prototypes> $<$<COMPILE_LANGUAGE:C>:-Wmissing-prototypes>
        $<$<BOOL:${KIVI_WERROR}>:-Werror>)
endif()
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^i[3-6]86$")
    # The x87 unit rounds twice.
    target_compile_options(kivi_flags INTERFACE -msse2 -mfpmath=sse)
endif()
if(KIVI_SANITIZE)
    target_compile_options(kivi_flags INTERFACE
        -fsanitize=${KIVI_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_link_options(kivi_flags INTERFACE -fsanitize=${KIVI_SANITIZE})
endif()

# What the library's own code needs besides. An installed package names libraries instead of these
# targets, so that its users need no FindOpenMP and no C compiler.
find_package(Threads REQUIRED)
add_library(kivi_requirements INTERFACE)
target_link_libraries(kivi_requirements INTERFACE kivi_flags Threads::Threads ${CMAKE_DL_LIBS})
set(KIVI_PRIVATE_LIBS)
if(KIVI_OPENMP)
    find_package(OpenMP COMPONENTS C)
endif()
if(NOT OpenMP_C_FOUND)
    target_compile_options(kivi_requirements INTERFACE -Wno-unknown-pragmas)
else()
    target_link_libraries(kivi_requirements INTERFACE OpenMP::OpenMP_C)
    foreach(name IN LISTS OpenMP_C_LIB_NAMES)
        # By its path where other compilers would not look for it.
        get_filename_component(directory "${OpenMP_${name}_LIBRARY}" DIRECTORY)
        if(directory IN_LIST CMAKE_C_IMPLICIT_LINK_DIRECTORIES)
            list(APPEND KIVI_PRIVATE_LIBS ${name})
        else()
            list(APPEND KIVI_PRIVATE_LIBS "${OpenMP_${name}_LIBRARY}")
        endif()
    endforeach()
endif()
if(CMAKE_USE_PTHREADS_INIT)
    list(APPEND KIVI_PRIVATE_LIBS pthread)
endif()
list(APPEND KIVI_PRIVATE_LIBS ${CMAKE_DL_LIBS})
if(UNIX)
    target_link_libraries(kivi_requirements INTERFACE m)
    list(APPEND KIVI_PRIVATE_LIBS m)
endif()
list(REMOVE_DUPLICATES KIVI_PRIVATE_LIBS)

function(kivi_c11 target)
    set_target_properties(${target} PROPERTIES
        C_STANDARD 11 C_STANDARD_REQUIRED ON C_EXTENSIONS OFF C_VISIBILITY_PRESET hidden)
    target_link_libraries(${target} PRIVATE kivi_flags)
endfunction()

# kivi_objects(<target> SOURCES <file>... [FLAGS <flag>...]): an object library of the library.
function(kivi_objects target)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;FLAGS")
    add_library(${target} OBJECT ${arg_SOURCES})
    kivi_c11(${target})
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON)
    target_include_directories(${target} PRIVATE
        "${PROJECT_SOURCE_DIR}/include" "${PROJECT_BINARY_DIR}/include")
    target_compile_definitions(${target} PRIVATE KIVI_BUILDING)
    target_compile_options(${target} PRIVATE ${arg_FLAGS})
    target_link_libraries(${target} PRIVATE kivi_requirements)
    set_property(GLOBAL APPEND PROPERTY KIVI_OBJECTS ${target})
endfunction()

# kivi_kernels(<table> SOURCES <file>... [FLAGS <flag>...]): a kernel table, if the compiler can.
# The core learns of it through KIVI_HAVE_<TABLE>.
function(kivi_kernels table)
    cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;FLAGS")
    string(TOUPPER "${table}" upper)
    if(arg_FLAGS)
        string(JOIN " " flags ${arg_FLAGS})
        check_c_compiler_flag("${flags}" KIVI_COMPILER_HAS_${upper})
        if(NOT KIVI_COMPILER_HAS_${upper})
            message(STATUS "Kernel table ${table}: left out, the compiler lacks ${flags}")
            return()
        endif()
    endif()
    kivi_objects(kivi_${table} SOURCES ${arg_SOURCES} FLAGS ${arg_FLAGS})
    target_compile_definitions(kivi_core PRIVATE KIVI_HAVE_${upper})
    set_property(GLOBAL APPEND PROPERTY KIVI_TABLES ${table})
endfunction()

# kivi_library(<target> SHARED|STATIC): the library from all objects so far.
function(kivi_library target kind)
    get_property(objects GLOBAL PROPERTY KIVI_OBJECTS)
    list(TRANSFORM objects REPLACE "(.+)" "$<TARGET_OBJECTS:\\1>")
    add_library(${target} ${kind} ${objects})
    set_target_properties(${target} PROPERTIES LINKER_LANGUAGE C)
    target_include_directories(${target} PUBLIC
        "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>"
        "$<BUILD_INTERFACE:${PROJECT_BINARY_DIR}/include>"
        "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")
    target_link_libraries(${target} PRIVATE $<BUILD_INTERFACE:kivi_requirements>)
    foreach(library IN LISTS KIVI_PRIVATE_LIBS)
        target_link_libraries(${target} PRIVATE $<INSTALL_INTERFACE:${library}>)
    endforeach()
endfunction()
