"""From the flags of the program to a server that runs: the model, the engine, the application."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable

from fastapi import FastAPI

from llava.conversation import conversation_for, find_template
from llava.inference.compiled import check_compile_device
from llava.inference.engine import Alone, AnyEngine, Engine
from llava.inference.loading import LoadedModel, check_device
from llava.inference.program import open_from_flags, quiet_libraries
from llava.inference.prompt import pick_conv_mode
from llava.mm_utils import get_model_name_from_path
from llava.serve.guard import PageGuard
from llava.serve.limits import Limits
from llava.serve.logs import set_up_logging
from llava.serve.openai.app import create_app, create_app_for
from llava.serve.openai.remote import ControllerModels
from llava.serve.openai.settings import ClientSettings, ServedModel, ServerSettings
from llava.serve.safe_fetch import FetchPolicy
from llava.serve.sockets import bind, url_of
from llava.serve.web_server import make_server

logger = logging.getLogger(__name__)
MIB = 2**20


# Puts something more into the application of an engine with a model, which is reached at an address.
AddTo = Callable[[FastAPI, AnyEngine, ServedModel, str], None]


def launch(
    args: argparse.Namespace, limits: Limits, *, page: PageGuard | None = None, add: AddTo | None = None
) -> None:
    """Serve what the flags of llava.serve.openai_api say. Raises UserError.

    page: that browsers show a page of this server, which `add` puts into the application of a model.
    """
    set_up_logging(args.log_level, secrets=(args.api_key,))
    if args.log_level != "debug":
        quiet_libraries()
    images = FetchPolicy(
        remote=args.allow_remote_images is not None, hosts=tuple(args.allow_remote_images or ())
    )
    clients = ClientSettings(
        api_key=args.api_key,
        limits=limits,
        images=images,
        max_images=args.max_images,
        default_max_tokens=args.max_tokens,
        page=page,
    )
    if args.controller_address is not None:
        _serve_controller(args, clients)
    else:
        _serve_model(args, clients, add)


def _serve_controller(args: argparse.Namespace, clients: ClientSettings) -> None:
    """Serve the models of a controller. Raises UserError."""
    if args.conv_mode is not None:
        find_template(args.conv_mode)
    with bind(args.host, args.port) as listening:
        models = ControllerModels(args.controller_address, api_key=args.api_key, conv_mode=args.conv_mode)
        logger.info("serving the models of %s at %s/v1", models.address, url_of(listening))
        server = make_server(create_app_for(models, clients), drain_seconds=args.drain_seconds)
        server.run(sockets=[listening])


def _serve_model(args: argparse.Namespace, clients: ClientSettings, add: AddTo | None) -> None:
    """Load a model and serve it. Raises UserError."""
    device = check_device(args.device)
    if args.compile:
        check_compile_device(device)
    with bind(args.host, args.port) as listening:  # before minutes of loading
        name = get_model_name_from_path(args.model_path)
        logger.info("loading %s on %s", args.model_path, device)
        loaded = open_from_flags(args)
        model = served_model(loaded, args.served_model_name or [name], args.conv_mode, name)
        alone = None
        if args.compile:
            alone = Alone(loaded.model)
            logger.info("compiling the decoding step, which may take minutes")
        engine = Engine(
            loaded,
            max_running=args.max_running,
            max_waiting=args.max_waiting,
            cache_bytes=args.cache_mb * MIB,
            alone=alone,
        )
        settings = ServerSettings(model, **vars(clients))
        app = create_app(engine, settings)
        if add is not None:
            add(app, engine, model, url_of(listening))
        server = make_server(app, drain_seconds=args.drain_seconds)
        logger.info("serving %s at %s/v1", ", ".join(model.names), url_of(listening))
        server.run(sockets=[listening])


def served_model(
    loaded: LoadedModel, names: list[str], conv_mode: str | None, model_name: str
) -> ServedModel:
    """Return what a server has to know of a loaded model. Raises UserError for an unknown template."""
    template, reason = pick_conv_mode(conv_mode, model_name, loaded.model.config)
    logger.info("conversation mode: %s (%s)", template, reason)
    return ServedModel(
        names=tuple(dict.fromkeys(names)),
        template=conversation_for(template, loaded.tokenizer),
        tokenizer=loaded.tokenizer,
        context=loaded.context,
        # rows beyond the tokenizer's have no text
        vocabulary=min(loaded.model.config.vocab_size, len(loaded.tokenizer)),
        takes_images=loaded.has_tower,
        config=loaded.model.config,
    )
