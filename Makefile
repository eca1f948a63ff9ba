# Each target sets up what it needs, says what it does, and is quick the second time.
#   COMFYUI_PATH=/path/to/ComfyUI   use that ComfyUI and its Python
#   TORCH="torch==..."              this torch instead of the pinned one (a pip requirement, with options if needed)
#   PORT=8188                       where `make serve` serves
#   PYTHON=python3                  what makes the virtual environment (3.10 or newer)
#   NAME=...                        which benchmark;   ARGS=...  more arguments for the program behind a target
PYTHON ?= python3
HOST = $(PYTHON) -m tools.host
export COMFYUI_PATH TORCH PORT

.PHONY: demo test bench serve
demo:
	@$(HOST) --run -m tools.demo $(ARGS)
test:
	@$(HOST) --test $(ARGS)
bench:
	@$(HOST) --run -m bench $(NAME) $(ARGS)
serve:
	@$(HOST) --serve
