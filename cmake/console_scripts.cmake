# install_console_scripts(SETUP_CFG)
#
# Reads the console scripts of setup.cfg, so that pip and colcon share one source, and installs one wrapper per script
# into lib/PROJECT_NAME (for `ros2 run`) and into bin (for the shell).
function(install_console_scripts setup_cfg)
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/${setup_cfg}")
  set(folder "${CMAKE_CURRENT_BINARY_DIR}/console_scripts")
  execute_process(
    COMMAND "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_SOURCE_DIR}/cmake/write_console_scripts.py"
      "${CMAKE_CURRENT_SOURCE_DIR}/${setup_cfg}" "${folder}" "${Python3_EXECUTABLE}"
    OUTPUT_VARIABLE scripts OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  install(PROGRAMS ${scripts} DESTINATION lib/${PROJECT_NAME})
  install(PROGRAMS ${scripts} DESTINATION bin)
endfunction()
