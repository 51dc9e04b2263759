# Installs system packages with apt-get; says what it installs before it happens.
# For scripts to source.
install_system() {
    local packages=("$@") sudo=""
    command -v apt-get >/dev/null || {
        echo "setup: ${packages[*]} missing, and there is no apt-get here; please install them" >&2
        exit 1
    }
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || {
            echo "setup: ${packages[*]} missing; run as root or install sudo" >&2
            exit 1
        }
        sudo="sudo"
    fi
    echo "setup: installing system packages: ${packages[*]}"
    $sudo apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${packages[@]}"
}
