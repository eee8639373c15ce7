"""A headless chromium that is spoken to through two pipes in its own protocol (`--remote-debugging-pipe`). Half a page of standard library does here what Selenium (a driver program) or Playwright (a whole Node) would be installed for."""
import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time

FLAGS = ('--headless=new --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run --no-default-browser-check --disable-background-networking --disable-component-update '
         '--disable-sync --disable-extensions --disable-default-apps --hide-scrollbars --mute-audio --remote-debugging-pipe').split()
# Chromium reads from file 3 and writes to file 4; a child of our own moves the pipes there before it becomes chromium
BECOME = 'import os,sys; r,w=(os.dup(os.dup(os.dup(int(f)))) for f in sys.argv[1:3]); os.dup2(r,3); os.dup2(w,4); os.execv(sys.argv[3], sys.argv[3:])'


def find_chromium():
    "Path of a chromium or chrome, None where there is none"
    return next((p for p in map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')) if p), None)


class Browser:
    """
    One page of a headless chromium, whose reader prefers dark pages or light ones; use it in a `with`.
    The preference is a setting of the whole program: one that is sent to a page (`Emulation.setEmulatedMedia`) may come after the page's own script has asked for it.
    """
    def __init__(self, dark=False): self.dark = dark

    def __enter__(self):
        self.home = tempfile.mkdtemp(prefix='chromium')
        read, far_write = os.pipe()
        far_read, self.write = os.pipe()
        self.process = subprocess.Popen([sys.executable, '-S', '-c', BECOME, str(far_read), str(far_write), find_chromium(), *FLAGS, f'--blink-settings=preferredColorScheme={int(not self.dark)}', f'--user-data-dir={self.home}', 'about:blank'],
                                        pass_fds=(far_read, far_write), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        os.close(far_read); os.close(far_write)
        self.numbers, self.answers, self.events, self.session = itertools.count(1), queue.Queue(), [], None
        threading.Thread(target=self._listen, args=(read,), daemon=True).start()
        target = self.ask('Target.createTarget', url='about:blank')['targetId']
        self.session = self.ask('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Network', 'Log'): self.ask(f'{domain}.enable')
        return self

    def __exit__(self, *error):
        try: os.killpg(self.process.pid, 9)      # its children, too: they were started in one group
        except ProcessLookupError: pass
        self.process.wait()
        os.close(self.write)
        shutil.rmtree(self.home, ignore_errors=True)

    def _listen(self, read):
        with open(read, 'rb') as f:
            rest = b''
            while chunk := f.read1(65536):
                *whole, rest = (rest + chunk).split(b'\0')
                for m in map(json.loads, whole): self.answers.put(m) if 'id' in m else self.events.append(m)
        self.answers.put(None)

    def ask(self, method, **params):
        "The answer to a command of the protocol"
        n = next(self.numbers)
        os.write(self.write, json.dumps(dict(id=n, method=method, params=params, **(dict(sessionId=self.session) if self.session else {}))).encode() + b'\0')
        while True:
            m = self.answers.get(timeout=120)
            if m is None: raise RuntimeError('chromium has ended')
            if m['id'] == n: break
        if 'error' in m: raise RuntimeError(f'{method}: {m["error"]}')
        return m['result']

    def js(self, code):
        "The value of an expression in the page, promises awaited"
        r = self.ask('Runtime.evaluate', expression=code, awaitPromise=True, returnByValue=True)
        if 'exceptionDetails' in r: raise RuntimeError(str(r['exceptionDetails']))
        return r['result'].get('value')

    def wait(self, code, seconds=120):
        "The value of an expression as soon as it is true"
        end = time.monotonic() + seconds
        while not (value := self.js(code)):
            if time.monotonic() > end: raise TimeoutError(f'not so after {seconds} s: {code}')
            time.sleep(.05)
        return value

    def look(self, width, height):
        "Size of the screen"
        self.ask('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    def leave(self):
        "Go to an empty page"
        self.ask('Page.navigate', url='about:blank')
        self.wait('location.href === "about:blank"')

    def open(self, url):
        "Load a page, its pictures included"
        self.events.clear()
        self.leave()
        self.ask('Page.navigate', url=url)
        self.wait(f'location.href.startsWith({url!r}) && document.readyState === "complete"')
        self.js('Promise.all([...document.images].map(i => { i.loading = "eager"; return i.decode().catch(() => 0) }))')

    def type(self, text):
        for ch in text: self.ask('Input.dispatchKeyEvent', type='char', text=ch)

    def named(self, role):
        "What a screen reader would say of all things of a kind, those in closed shadow trees too: 'option', 'combobox', ..."
        nodes = self.ask('Accessibility.getFullAXTree')['nodes']
        return [n.get('name', {}).get('value', '') for n in nodes if not n.get('ignored') and n['role']['value'] == role]

    def picture(self, path, full=False):
        "A screenshot as PNG"
        import base64
        with open(path, 'wb') as f: f.write(base64.b64decode(self.ask('Page.captureScreenshot', format='png', captureBeyondViewport=full)['data']))

    @property
    def requests(self): return [e['params']['request']['url'] for e in self.events if e['method'] == 'Network.requestWillBeSent']

    @property
    def complaints(self):
        "Errors on the console, exceptions, and answers from 400 on"
        out = []
        for e in self.events:
            p = e['params']
            if e['method'] == 'Runtime.consoleAPICalled' and p['type'] in ('error', 'assert'): out.append(str([a.get('value', a.get('description')) for a in p['args']]))
            elif e['method'] == 'Runtime.exceptionThrown': out.append(str(p['exceptionDetails'].get('exception', p['exceptionDetails']).get('description', p)))
            elif e['method'] == 'Log.entryAdded' and p['entry']['level'] == 'error': out.append(f"{p['entry']['text']} {p['entry'].get('url', '')}")
        return out
