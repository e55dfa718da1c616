# tandem_options: what every C target of the project is compiled with. tandem_warnings: the part that examples get too.
# Not -Wenum-float-conversion, which newer clangs put into -Wconversion: an integer constant in a double's arithmetic is exact.

add_library(tandem_warnings INTERFACE)
target_compile_options(
  tandem_warnings
  INTERFACE "$<$<COMPILE_LANGUAGE:C>:-Wall;-Wextra;-Wpedantic;-Wconversion;-Wshadow;-Wstrict-prototypes>"
            "$<$<COMPILE_LANGUAGE:C>:-Wmissing-prototypes;-Wpointer-arith;-Wundef;-Wno-enum-float-conversion>"
            "$<$<AND:$<COMPILE_LANGUAGE:C>,$<BOOL:${TANDEM_WERROR}>>:-Werror>")

# Sanitizers go into everything that is linked together, examples included.
add_library(tandem_sanitize INTERFACE)
if(TANDEM_BUILD_FUZZERS)
  if(NOT CMAKE_C_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "TANDEM_BUILD_FUZZERS needs clang (libFuzzer); the compiler is ${CMAKE_C_COMPILER_ID}. "
                        "Use `cmake --preset fuzz`.")
  endif()
  target_compile_options(tandem_sanitize INTERFACE $<$<COMPILE_LANGUAGE:C>:-fsanitize=fuzzer-no-link>)
endif()
if(TANDEM_SANITIZE)
  target_compile_options(
    tandem_sanitize
    INTERFACE "$<$<COMPILE_LANGUAGE:C>:-fsanitize=${TANDEM_SANITIZE};-fno-sanitize-recover=all;-fno-omit-frame-pointer>")
  target_link_options(tandem_sanitize INTERFACE -fsanitize=${TANDEM_SANITIZE})
endif()

add_library(tandem_options INTERFACE)
# -ffp-contract=off: the references are the oracle, so a multiply and an add round twice on every compiler and machine.
# -fmacro-prefix-map: tdm_error.file reads "runtime/lane.c" wherever the sources lie.
target_compile_options(
  tandem_options INTERFACE "$<$<COMPILE_LANGUAGE:C>:-fvisibility=hidden;-ffp-contract=off>"
                           "$<$<COMPILE_LANGUAGE:C>:-fmacro-prefix-map=${PROJECT_SOURCE_DIR}/=>")
target_compile_definitions(tandem_options INTERFACE _GNU_SOURCE)
target_include_directories(tandem_options INTERFACE ${PROJECT_SOURCE_DIR}/include)
target_link_libraries(tandem_options INTERFACE tandem_warnings tandem_sanitize)
