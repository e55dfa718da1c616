# Folders as targets. Each folder's headers are reached as "folder/header.h" through a link in the build tree that only the
# targets named in tandem_folder see, so an include that skips a layer does not compile. (tests/checks/layers.sh catches
# what a compiler cannot: "..", and device code, which nvcc compiles with the whole tree in sight.)

function(tandem_folder name)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${name}/*.c)
  list(FILTER sources EXCLUDE REGEX "/runtime/cuda/") # tandem_cuda_device chooses from these
  add_library(tandem_${name} OBJECT ${sources})
  set_target_properties(tandem_${name} PROPERTIES POSITION_INDEPENDENT_CODE ON LINKER_LANGUAGE C)
  add_library(tandem_${name}_headers INTERFACE)
  set(link_root ${PROJECT_BINARY_DIR}/include_${name})
  file(MAKE_DIRECTORY ${link_root})
  file(CREATE_LINK ${PROJECT_SOURCE_DIR}/${name} ${link_root}/${name} SYMBOLIC)
  target_include_directories(tandem_${name}_headers INTERFACE ${link_root})
  target_link_libraries(tandem_${name} PRIVATE tandem_options tandem_${name}_headers Threads::Threads)
  foreach(below IN LISTS ARGN)
    target_link_libraries(tandem_${name} PRIVATE tandem_${below}_headers)
  endforeach()
endfunction()

# The library, static and shared, out of the folders' objects; and tandem_internal for tests, which see every symbol.
function(tandem_library)
  set(objects "")
  set(headers "")
  foreach(folder IN LISTS ARGN)
    list(APPEND objects $<TARGET_OBJECTS:tandem_${folder}>)
    list(APPEND headers tandem_${folder}_headers)
  endforeach()
  add_library(tandem_static STATIC ${objects})
  add_library(tandem_shared SHARED ${objects})
  foreach(library tandem_static tandem_shared)
    set_target_properties(${library} PROPERTIES OUTPUT_NAME tandem LINKER_LANGUAGE C)
    target_include_directories(
      ${library} INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
                           $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
    target_link_libraries(${library} PRIVATE PkgConfig::JANSSON Threads::Threads m ${CMAKE_DL_LIBS}
                                             $<BUILD_INTERFACE:tandem_sanitize>)
  endforeach()
  set(version_script ${PROJECT_SOURCE_DIR}/cmake/tandem.map)
  set_target_properties(tandem_shared PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}
                                                 EXPORT_NAME tandem LINK_DEPENDS ${version_script})
  target_link_options(tandem_shared PRIVATE -Wl,--version-script=${version_script})
  if(NOT TANDEM_SANITIZE) # clang leaves the sanitizers' symbols to the executable
    target_link_options(tandem_shared PRIVATE -Wl,--no-undefined)
  endif()
  add_library(tandem::tandem ALIAS tandem_shared)
  add_library(tandem::tandem_static ALIAS tandem_static)
  add_library(tandem_internal INTERFACE)
  target_link_libraries(tandem_internal INTERFACE tandem_static tandem_options Threads::Threads ${headers})
endfunction()
