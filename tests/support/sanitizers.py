"""A plugin for pytest: the compiled step is built with the sanitizers of addresses and of undefined behaviour."""

from service.engine.native import build

FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1", "-O1")

build.FLAGS = (*build.FLAGS, *FLAGS)
