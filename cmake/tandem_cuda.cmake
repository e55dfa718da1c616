# Device code: every kernels/<op>/<name>_sm90.cu becomes <build>/cubins/<name>_sm90.cubin, and all of them are embedded in the
# library (runtime/cubins.h). CUDA is no language of the project: host code is C, and a cubin is data. Without nvcc
# TANDEM_NVCC is empty, the table as well, and the library drives the host device only.

set(tandem_nvcc_minimum 12.4)

# Sets TANDEM_NVCC, TANDEM_NVCC_VERSION and TANDEM_CUDA_INCLUDE_DIR (the folder with cuda.h).
function(tandem_find_nvcc)
  set(TANDEM_NVCC "" PARENT_SCOPE)
  if(NOT TANDEM_CUDA MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "TANDEM_CUDA is \"${TANDEM_CUDA}\"; it can be AUTO, ON or OFF")
  endif()
  if(TANDEM_CUDA STREQUAL "OFF")
    message(STATUS "CUDA: off, no kernels embedded (TANDEM_CUDA=OFF)")
    return()
  endif()
  find_program(TANDEM_NVCC_PROGRAM nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  mark_as_advanced(TANDEM_NVCC_PROGRAM)
  set(problem "")
  if(NOT TANDEM_NVCC_PROGRAM)
    set(problem "nvcc is neither on PATH nor in /usr/local/cuda/bin")
  else()
    execute_process(COMMAND ${TANDEM_NVCC_PROGRAM} --version OUTPUT_VARIABLE output ERROR_VARIABLE output)
    if(output MATCHES "release ([0-9]+\\.[0-9]+)")
      set(version ${CMAKE_MATCH_1})
      if(version VERSION_LESS tandem_nvcc_minimum)
        set(problem "${TANDEM_NVCC_PROGRAM} is of CUDA ${version}, and ${tandem_nvcc_minimum} or later is needed")
      endif()
    else()
      set(problem "${TANDEM_NVCC_PROGRAM} --version does not tell a release")
    endif()
  endif()
  if(NOT problem)
    file(REAL_PATH ${TANDEM_NVCC_PROGRAM} real_nvcc)
    cmake_path(GET real_nvcc PARENT_PATH toolkit_bin)
    find_path(TANDEM_CUDA_INCLUDE_DIR cuda.h HINTS ${toolkit_bin}/../include)
    mark_as_advanced(TANDEM_CUDA_INCLUDE_DIR)
    if(NOT TANDEM_CUDA_INCLUDE_DIR)
      set(problem "cuda.h does not lie beside ${TANDEM_NVCC_PROGRAM}")
    endif()
  endif()
  if(problem AND TANDEM_CUDA STREQUAL "ON")
    message(FATAL_ERROR "CUDA: ${problem} (TANDEM_CUDA=ON)")
  elseif(problem)
    message(STATUS "CUDA: no kernels embedded: ${problem}")
  else()
    set(TANDEM_NVCC ${TANDEM_NVCC_PROGRAM} PARENT_SCOPE)
    set(TANDEM_NVCC_VERSION ${version} PARENT_SCOPE)
  endif()
endfunction()

# Rules that compile kernel files; `out_cubins` lists the results.
function(tandem_compile_cubins out_cubins)
  set(cubins "")
  foreach(source IN LISTS ARGN)
    cmake_path(GET source STEM name)
    set(cubin ${PROJECT_BINARY_DIR}/cubins/${name}.cubin)
    add_custom_command(
      OUTPUT ${cubin}
      BYPRODUCTS ${PROJECT_BINARY_DIR}/cubins/${name}.ptxas.txt
      COMMAND ${CMAKE_COMMAND} -D NVCC=${TANDEM_NVCC} -D SOURCE=${source} -D CUBIN=${cubin} -D ROOT=${PROJECT_SOURCE_DIR}
              -P ${PROJECT_SOURCE_DIR}/cmake/compile_cubin.cmake
      DEPENDS ${source} ${PROJECT_SOURCE_DIR}/cmake/compile_cubin.cmake ${PROJECT_SOURCE_DIR}/cmake/spill_allowed.txt
      DEPFILE ${cubin}.d
      COMMENT "Compiling kernel ${name}"
      VERBATIM)
    list(APPEND cubins ${cubin})
  endforeach()
  set(${out_cubins} "${cubins}" PARENT_SCOPE)
endfunction()

# Gives `target` the table of runtime/cubins.h with the cubins that follow.
function(tandem_embed_cubins target)
  set(rows "")
  set(blobs "")
  set(count 0)
  foreach(cubin IN LISTS ARGN)
    cmake_path(GET cubin STEM name)
    string(APPEND rows "  .quad name_${count}, data_${count}, end_${count} - data_${count}\n")
    string(APPEND blobs "name_${count}:\n  .asciz \"${name}\"\n  .balign 64\n"
                        "data_${count}:\n  .incbin \"${cubin}\"\nend_${count}:\n")
    math(EXPR count "${count} + 1")
  endforeach()
  set(table ${CMAKE_CURRENT_BINARY_DIR}/${target}_cubins.S)
  configure_file(${PROJECT_SOURCE_DIR}/cmake/cubins.S.in ${table} @ONLY)
  set_source_files_properties(${table} PROPERTIES OBJECT_DEPENDS "${ARGN}")
  target_sources(${target} PRIVATE ${table})
endfunction()

# The CUDA device's host code, which needs cuda.h; without it a device that says so.
function(tandem_cuda_device target)
  set(folder ${PROJECT_SOURCE_DIR}/runtime/cuda)
  if(NOT TANDEM_NVCC)
    target_sources(${target} PRIVATE ${folder}/none.c)
    return()
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${folder}/*.c)
  list(REMOVE_ITEM sources ${folder}/none.c)
  target_sources(${target} PRIVATE ${sources})
  target_include_directories(${target} SYSTEM PRIVATE ${TANDEM_CUDA_INCLUDE_DIR})
endfunction()
