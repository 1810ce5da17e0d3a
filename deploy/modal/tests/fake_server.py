"""A fake Modal server that records the requests of clients and containers."""

import asyncio
import pickle
import threading

import grpclib
from grpclib.server import Server
from modal_proto import api_grpc, api_pb2

SUCCESS = api_pb2.GenericResult.GENERIC_STATUS_SUCCESS
FAILURE = api_pb2.GenericResult.GENERIC_STATUS_FAILURE


class Service(api_grpc.ModalClientBase):
    """Records each request. The reply is empty unless a function in HANDLERS fills it in."""

    def __init__(self):
        self.recorded, self.count, self.outcome, self.names = [], 0, None, {}
        self.inputs, self.awaits_cancel, self.canceled_input, self.open_files = [], False, None, False

    def new_id(self, kind):
        self.count += 1
        return f"{kind}-{self.count}"

    def requests(self, name):
        return [request for rpc, request in self.recorded if rpc == name]


def method(name):
    async def handle(self, stream):
        request = await stream.recv_message()
        self.recorded.append((name, request))
        reply = self.__mapping__()[f"/modal.client.ModalClient/{name}"].reply_type()
        result = HANDLERS.get(name, lambda service, request, reply: None)(self, request, reply)
        if asyncio.iscoroutine(result):
            await result
        await stream.send_message(reply)

    return handle


def environment(service, request, reply):
    reply.environment_id, reply.metadata.settings.image_builder_version = service.new_id("en"), "2025.06"


def token(service, request, reply):
    reply.token = "e30.eyJleHAiOjk5OTk5OTk5OTl9.x"  # expires in the year 2286


def image(service, request, reply):
    reply.image_id, reply.result.status = service.new_id("im"), SUCCESS
    service.names[reply.image_id] = request.image


def id_setter(field, kind):
    def set_id(service, request, reply):
        setattr(reply, field, service.new_id(kind))
        service.names[getattr(reply, field)] = request

    return set_id


def function(service, request, reply):
    reply.function_id = request.existing_function_id or service.new_id("fu")
    reply.function_data.CopyFrom(request.function_data)
    if request.HasField("function"):
        reply.function_data.function_name = request.function.function_name
        reply.function_data.ranked_functions.add(function=request.function)
    service.names[reply.function_id] = reply.handle_metadata.function_name = reply.function_data.function_name


def precreate(service, request, reply):
    reply.function_id = service.new_id("fu")
    reply.handle_metadata.function_name = request.function_name


def file_exists(service, request, reply):
    reply.exists = True


def spawn(service, request, reply):
    reply.function_call_id = service.new_id("fc")
    for item in request.pipelined_inputs:
        reply.pipelined_inputs.add(idx=item.idx, input_id=service.new_id("in"))


def output(service, request, reply):
    if isinstance(service.outcome, grpclib.GRPCError):  # an error of the server, not of the call
        raise service.outcome
    item = reply.outputs.add(idx=0, data_format=api_pb2.DATA_FORMAT_PICKLE)
    if isinstance(service.outcome, BaseException):
        item.result.status, item.result.exception = FAILURE, repr(service.outcome)
    else:
        item.result.status = SUCCESS
    item.result.data = pickle.dumps(service.outcome)


def next_input(service, request, reply):
    if service.inputs:
        reply.inputs.add().CopyFrom(service.inputs.pop(0))
    else:
        reply.inputs.add(kill_switch=True)


async def heartbeat(service, request, reply):
    """Delays the reply until a pending cancellation, because heartbeats are rare."""
    while service.awaits_cancel and not service.canceled_input:
        await asyncio.sleep(0.05)
    if service.canceled_input:
        reply.cancel_input_event.input_ids.append(service.canceled_input)
        service.awaits_cancel, service.canceled_input = False, None


def reload(service, request, reply):
    if service.open_files:
        message = "there are open files preventing the operation"
        raise grpclib.GRPCError(grpclib.Status.FAILED_PRECONDITION, message)


def logs(service, request, reply):
    reply.app_done = True


HANDLERS = {
    "AuthTokenGet": token,
    "EnvironmentGetOrCreate": environment,
    "AppCreate": id_setter("app_id", "ap"),
    "MountGetOrCreate": id_setter("mount_id", "mo"),
    "MountPutFile": file_exists,
    "VolumeGetOrCreate": id_setter("volume_id", "vo"),
    "SecretGetOrCreate": id_setter("secret_id", "st"),
    "ImageGetOrCreate": image,
    "FunctionPrecreate": precreate,
    "FunctionCreate": function,
    "FunctionMap": spawn,
    "FunctionGetOutputs": output,
    "AppGetLogs": logs,
    "VolumeReload": reload,
    "FunctionGetInputs": next_input,
    "ContainerHeartbeat": heartbeat,
}
for _name in api_grpc.ModalClientBase.__abstractmethods__:
    setattr(Service, _name, method(_name))
Service.__abstractmethods__ = frozenset()


class FakeServer:
    """The service on a local port."""

    def __enter__(self):
        self.service, self.loop = Service(), asyncio.new_event_loop()
        started = threading.Event()

        async def serve():
            self.server = Server([self.service])
            await self.server.start("127.0.0.1", 0)
            self.url = "http://127.0.0.1:{}".format(self.server._server.sockets[0].getsockname()[1])
            started.set()

        def run_loop():
            asyncio.set_event_loop(self.loop)
            self.loop.run_until_complete(serve())
            self.loop.run_forever()

        self.thread = threading.Thread(target=run_loop, daemon=True)
        self.thread.start()
        started.wait(900)
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.server.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()
