"""The engine without HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from dummy import DummyDetector
from sample_images import encoded, sample_image

from moleflow.model.errors import CheckpointVersionError, UnknownTaskError, UnsupportedImageError
from moleflow.service.engine.engine import Engine
from moleflow.service.engine.predictor import Predictor
from moleflow.service.errors import NotReadyError, OverloadedError
from moleflow.service.responses.render import ResponseFormat
from moleflow.service.responses.schemas import PredictionResponse
from moleflow.service.settings import Settings


@asynccontextmanager
async def engine_with(model: DummyDetector, **settings: Any) -> AsyncIterator[Engine]:
    engine = Engine(Settings(checkpoint="dummy.safetensors", **settings))
    engine.start(lambda: model)
    try:
        await engine.wait_until_ready()
        yield engine
    finally:
        model.gate.set()
        await engine.stop()


def test_an_encoded_image_yields_an_encoded_response() -> None:
    async def main() -> None:
        async with engine_with(DummyDetector()) as engine:
            with engine.admit():
                answer = await engine.predict(encoded(sample_image(spot=True)))
            found = PredictionResponse.model_validate_json(answer.content)
            assert found.task.name == answer.finding.task.name == "green"

    asyncio.run(main())


def test_errors_about_images_and_products_reach_the_caller() -> None:
    async def main() -> None:
        async with engine_with(DummyDetector()) as engine:
            with engine.admit(), pytest.raises(UnsupportedImageError):
                await engine.predict(b"no image")
            with engine.admit(), pytest.raises(UnknownTaskError):
                await engine.predict(encoded(sample_image()), task="bottle")

    asyncio.run(main())


def test_a_slot_is_free_again_after_a_failure() -> None:
    async def main() -> None:
        async with engine_with(DummyDetector(), queue_size=1) as engine:
            for _ in range(3):
                with engine.admit(), pytest.raises(UnsupportedImageError):
                    await engine.predict(b"no image")

    asyncio.run(main())


def test_no_more_requests_are_admitted_than_there_are_slots() -> None:
    async def main() -> None:
        async with engine_with(DummyDetector(), queue_size=2) as engine:
            with engine.admit(), engine.admit():
                with pytest.raises(OverloadedError, match=r"full \(2 requests\)") as caught, engine.admit():
                    raise AssertionError
                assert caught.value.retry_after_seconds >= 1
            with engine.admit():
                pass

    asyncio.run(main())


def test_stopping_waits_for_admitted_requests() -> None:
    async def main() -> None:
        model = DummyDetector()
        model.gate.clear()
        async with engine_with(model) as engine:
            with engine.admit():
                working = asyncio.create_task(
                    engine.predict(encoded(sample_image()), response_format=ResponseFormat(map_encoding="none"))
                )
                assert await asyncio.to_thread(model.entered.wait, 120)
                stopping = asyncio.create_task(engine.stop())
                await asyncio.sleep(0)
                with pytest.raises(NotReadyError, match="stopping"), engine.admit():
                    raise AssertionError
                late = asyncio.create_task(
                    engine.predict(encoded(sample_image()))
                )  # submitted while stopping, but admitted before
                model.gate.set()
                assert (await working).content
                assert (await late).content
                assert not stopping.done()
            await stopping

    asyncio.run(main())


def test_an_engine_reports_that_its_model_cannot_be_loaded() -> None:
    def load() -> Predictor:
        raise CheckpointVersionError("written by a newer version")

    async def main() -> None:
        engine = Engine(Settings(checkpoint="dummy.safetensors"))
        engine.start(load)
        with pytest.raises(CheckpointVersionError):
            await engine.wait_until_ready()
        with pytest.raises(NotReadyError, match="could not be loaded"), engine.admit():
            raise AssertionError
        await engine.stop()

    asyncio.run(main())


def test_cancelling_a_request_removes_it_from_the_queue() -> None:
    async def main() -> None:
        model = DummyDetector()
        model.gate.clear()
        async with engine_with(model) as engine:
            with engine.admit(), engine.admit():
                first = asyncio.create_task(engine.predict(encoded(sample_image())))
                assert await asyncio.to_thread(model.entered.wait, 120)
                second = asyncio.create_task(engine.predict(encoded(sample_image())))
                await asyncio.sleep(0.1)
                second.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await second
                model.gate.set()
                await first
        assert model.batches == [1]

    asyncio.run(main())
