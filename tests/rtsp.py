"""A camera for tests: a small RTSP server on the loopback, real RTSP and RTP over TCP, that can drop, die and ask for a password.

    with RTSPServer(door=Feed(60, fps=25, drops=(20, 40))) as server: cv2.VideoCapture(server.url('door'))

Frames are RTP/JPEG (RFC 2435). Each carries its number as eight black or white blocks, which `frame_number` reads back, so that a test knows which frames arrived.
"""
import base64
import contextlib
import re
import socket
import socketserver
import struct
import threading
import time

import cv2
import numpy as np

WIDTH, HEIGHT = 128, 64


def numbered_frame(n, width=WIDTH, height=HEIGHT):
    "uint8 (H,W,3) BGR: a grey picture with 12 bits of `n` as blocks, the highest first, in two rows of six"
    frame = np.full((height, width, 3), 128, np.uint8)
    h, w = height//2, width//6
    for i in range(12):
        y, x = divmod(i, 6)
        frame[y*h:(y + 1)*h, x*w:(x + 1)*w] = 255*(n >> (11 - i) & 1)
    return frame


def frame_number(frame):
    "The number that a frame carries"
    height, width = frame.shape[:2]
    h, w = height//2, width//6
    return int(''.join(str(int(frame[y*h + h//4:y*h + 3*h//4, x*w + w//4:x*w + 3*w//4].mean() > 127)) for y in range(2) for x in range(6)), 2)


class Feed:
    "What one address shows: so many frames, once, whoever looks; `drops` are numbers at which the line is cut"
    def __init__(self, frames=50, fps=50, drops=(), user='', password='', dies_at=None, number=lambda n: n):
        self.frames, self.fps, self.drops, self.dies_at, self.number = frames, fps, set(drops), dies_at, number
        self.login = base64.b64encode(f'{user}:{password}'.encode()).decode() if user else ''
        self.sent, self.connections, self.over, self.refused = 0, 0, threading.Event(), 0


def jpeg_packets(bgr, sequence, stamp, size=1200):
    "RTP packets of one picture"
    data = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    tables, at = b'', 2
    while data[at + 1] != 0xda:                          # walk over the segments up to the scan
        length = struct.unpack('>H', data[at + 2:at + 4])[0]
        if data[at + 1] == 0xdb:                         # quantisation tables, 64 bytes each behind a byte of their own
            body = data[at + 4:at + 2 + length]
            tables += b''.join(body[k + 1:k + 65] for k in range(0, len(body), 65))
        at += 2 + length
    scan = data[at + 2 + struct.unpack('>H', data[at + 2:at + 4])[0]:-2]
    h, w = bgr.shape[:2]
    for offset in range(0, len(scan), size):
        part, last = scan[offset:offset + size], offset + size >= len(scan)
        head = struct.pack('>BBHII', 0x80, 26 | 0x80*last, sequence & 0xffff, stamp & 0xffffffff, 0x1234)
        jpeg = struct.pack('>I', offset) + bytes([1, 255, w//8, h//8]) + (struct.pack('>HH', 0, len(tables)) + tables if offset == 0 else b'')
        packet, sequence = head + jpeg + part, sequence + 1
        yield b'$\0' + struct.pack('>H', len(packet)) + packet


class _Talk(socketserver.StreamRequestHandler):
    "One connection: answers requests, then sends"
    def handle(self):
        self.server.open.add(self.connection)
        with contextlib.suppress(OSError):
            while (asked := self.read_request()) is not None:
                if not self.answer(*asked): break
        self.server.open.discard(self.connection)

    def read_request(self):
        lines = []
        while (line := self.rfile.readline()) not in (b'\r\n', b''): lines.append(line.decode('latin-1').strip())
        if not lines: return None
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(':') for line in lines[1:])}
        return (*lines[0].split()[:2], headers)

    def reply(self, headers, status='200 OK', extra='', body=''):
        content = f'Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n' if body else ''
        self.wfile.write(f'RTSP/1.0 {status}\r\nCSeq: {headers.get("cseq", 0)}\r\n{extra}{content}\r\n{body}'.encode())

    def answer(self, method, url, headers):
        feed = self.server.feeds.get(re.sub(r'rtsp://[^/]+/', '', url).split('/')[0].split('?')[0])
        if method == 'OPTIONS': self.reply(headers, extra='Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n')
        elif feed is None or feed.over.is_set(): self.reply(headers, '404 Not Found')
        elif feed.login and headers.get('authorization', '') != f'Basic {feed.login}':
            feed.refused += 1
            self.reply(headers, '401 Unauthorized', 'WWW-Authenticate: Basic realm="camera"\r\n')
        elif method == 'DESCRIBE':
            sdp = 'v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\na=control:track1\r\n'
            self.reply(headers, body=sdp, extra=f'Content-Base: {url}/\r\n')
        elif method == 'SETUP': self.reply(headers, extra='Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 7;timeout=60\r\n')
        elif method == 'PLAY':
            self.reply(headers, extra='Session: 7\r\nRange: npt=0-\r\n')
            self.send(feed)
            return False
        else: self.reply(headers, extra='Session: 7\r\n')
        return method != 'TEARDOWN'

    def send(self, feed):
        "Frames from where the feed stands, in its own time, until it ends or the line is cut"
        feed.connections += 1
        sequence, start, first = 0, time.monotonic(), feed.sent
        while feed.sent < feed.frames and not self.server.closing.is_set():
            n = feed.sent
            if n == feed.dies_at: feed.over.set()
            if n in feed.drops or feed.over.is_set():
                feed.drops.discard(n)
                return
            time.sleep(max(0, start + (n - first)/feed.fps - time.monotonic()))
            for packet in jpeg_packets(numbered_frame(feed.number(n)), sequence, int(n*90000/feed.fps)):
                self.wfile.write(packet)
                sequence += 1
            feed.sent += 1
        time.sleep(.2)
        feed.over.set()


class RTSPServer(socketserver.ThreadingTCPServer):
    "Feeds by name on a free port of 127.0.0.1"
    allow_reuse_address = daemon_threads = True
    block_on_close = False

    def __init__(self, **feeds):
        super().__init__(('127.0.0.1', 0), _Talk)
        self.feeds, self.open, self.closing = feeds, set(), threading.Event()

    def url(self, name, login=''): return f'rtsp://{login + "@" if login else ""}127.0.0.1:{self.server_address[1]}/{name}'

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs=dict(poll_interval=.05), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.shutdown()
        for s in list(self.open):
            with contextlib.suppress(OSError): s.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def handle_error(self, request, client_address): pass      # a client that hangs up is no error here
