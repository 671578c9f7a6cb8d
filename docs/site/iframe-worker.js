// A browser starts no worker from a file. Where the pages are opened from a folder, the search runs in a frame instead.
if (location.protocol === 'file:') {
  window.Worker = class extends EventTarget {
    constructor (url) {
      super()
      const frame = document.createElement('iframe')
      frame.hidden = true
      document.body.append(frame)
      this.inside = frame.contentWindow
      this.inside.postMessage = data => this.dispatchEvent(new MessageEvent('message', { data }))
      const script = this.inside.document.createElement('script')
      script.src = url
      this.ready = new Promise(resolve => { script.onload = resolve })
      this.inside.document.body.append(script)
    }

    postMessage (data) {
      this.ready.then(() => this.inside.dispatchEvent(new MessageEvent('message', { data })))
    }
  }
}
