"""How a node shows its result: a picture and words on the node itself, and both in ComfyUI's history."""

from comfy_api.latest import ui
from comfy_execution.graph import ExecutionBlocker
from server import PromptServer

from ..measure.plots import NoMatplotlib


def show(cls, text, picture=None, **more):
    """The ``ui`` of a node with these words, this IMAGE and any further lists. The node must ask for its unique_id.

    ComfyUI's page draws the images of a ``ui`` on any node, its text only on a few of core's: for ours it is sent. Where the disk
    is full the words say so: what the node has made is not lost for its preview.
    """
    try:
        pictures = {} if picture is None else ui.PreviewImage(picture).as_dict()
    except OSError as error:
        text, pictures = f"{text}\nNo picture is shown, as it could not be saved: {error}", {}
    if cls.hidden and cls.hidden.unique_id:
        PromptServer.instance.send_progress_text(text, cls.hidden.unique_id)
    return {"text": [text], **pictures, **more}


def draw_and_show(cls, text, draw, *arguments, **more):
    """The IMAGE that ``draw(*arguments)`` makes, and the node's ``ui`` with it.

    Without matplotlib the words say so, and the IMAGE is a block that stops only what wants to use it, with a message.
    """
    try:
        picture = draw(*arguments)
    except NoMatplotlib as missing:
        return ExecutionBlocker(str(missing)), show(cls, f"{text}\nNo picture. {missing}", **more)
    return picture, show(cls, text, picture, **more)
