// A page opened from disk may not start a Worker, and the search needs one. Run it in a hidden frame instead.
// As with a Worker, messages are copies and arrive later: an answer in the middle of a keystroke would undo it.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      const inner = frame.contentWindow
      inner.postMessage = data => setTimeout(() => {
        const event = new MessageEvent("message", { data: structuredClone(data) })
        this.dispatchEvent(event)
        if (this.onmessage) this.onmessage(event)
      })
      this.ready = new Promise((resolve, reject) => {
        const script = frame.contentDocument.createElement("script")
        script.onload = () => resolve(inner)
        script.onerror = reject
        script.src = new URL(url, location.href).href
        frame.contentDocument.body.appendChild(script)
      })
      this.frame = frame
    }
    postMessage(data) {
      const copy = structuredClone(data)
      this.ready.then(inner => setTimeout(() => inner.onmessage({ data: copy })))
    }
    terminate() { this.frame.remove() }
  }
}
