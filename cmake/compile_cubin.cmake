# cmake -D NVCC= -D SOURCE= -D CUBIN= -D ROOT= -P compile_cubin.cmake
# Compiles a kernel file, keeps ptxas' resource report beside the cubin (<name>.ptxas.txt) and refuses a kernel that spills
# or that ptxas says to have slowed down (serialised wgmma, ignored setmaxnreg), unless cmake/spill_allowed.txt lists it.

cmake_minimum_required(VERSION 3.25)
string(REGEX REPLACE "\\.cubin$" ".ptxas.txt" report ${CUBIN})
cmake_path(RELATIVE_PATH SOURCE BASE_DIRECTORY ${ROOT} OUTPUT_VARIABLE name)

execute_process(
  COMMAND
    ${NVCC} -cubin -gencode=arch=compute_90a,code=sm_90a -O3 -std=c++17 -lineinfo -Xptxas=-v -Werror all-warnings
    -I ${ROOT} -I ${ROOT}/include -MD -MF ${CUBIN}.d -MT ${CUBIN} -o ${CUBIN} ${SOURCE}
  RESULT_VARIABLE result
  OUTPUT_VARIABLE output
  ERROR_VARIABLE output)
file(WRITE ${report} "${output}")
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${name} does not compile:\n${output}")
endif()

file(STRINGS ${ROOT}/cmake/spill_allowed.txt allowed REGEX "^[^#]")
file(STRINGS ${report} lines)
set(kernel "")
set(problems "")
foreach(line IN LISTS lines)
  if(line MATCHES "Function properties for ([^ ]+)")
    set(kernel ${CMAKE_MATCH_1})
    set(allowed_bytes 0)
    foreach(entry IN LISTS allowed)
      if(entry MATCHES "^([^ ]+) +([0-9]+)" AND CMAKE_MATCH_1 STREQUAL kernel)
        set(allowed_bytes ${CMAKE_MATCH_2})
      endif()
    endforeach()
  elseif(line MATCHES "([0-9]+) bytes spill stores, ([0-9]+) bytes spill loads")
    math(EXPR bytes "${CMAKE_MATCH_1} + ${CMAKE_MATCH_2}")
    if(bytes GREATER allowed_bytes)
      string(APPEND problems "  ${kernel} spills ${CMAKE_MATCH_1} bytes of stores, ${CMAKE_MATCH_2} of loads; "
                             "${allowed_bytes} are allowed\n")
    endif()
  elseif(line MATCHES "Potential Performance Loss")
    string(APPEND problems "  ${line}\n")
  endif()
endforeach()
if(problems)
  file(REMOVE ${CUBIN})
  message(FATAL_ERROR "${name}: ptxas reports (all of it in ${report}, exceptions in cmake/spill_allowed.txt):\n${problems}")
endif()
