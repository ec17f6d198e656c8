"use strict";
// From file:// a browser starts no worker, and the search is one: there it runs in a hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = null;
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      const ready = () => {
        const inside = this.frame.contentWindow, page = this.frame.contentDocument;
        inside.postMessage = (data) => this.hear(data);
        inside.importScripts = (...addresses) => addresses.reduce((before, address) => before.then(() => this.load(page, address)), Promise.resolve());
        this.loaded = this.load(page, url);
      };
      if (document.body) document.body.append(this.frame);
      else document.documentElement.append(this.frame);
      ready();
    }
    load(page, address) {
      return new Promise((resolve, reject) => {
        const script = page.createElement("script");
        script.src = new URL(address, location.href);
        script.onload = resolve;
        script.onerror = reject;
        page.body.append(script);
      });
    }
    hear(data) {
      const event = new MessageEvent("message", { data });
      this.dispatchEvent(event);
      if (this.onmessage) this.onmessage(event);
    }
    postMessage(data) {
      this.loaded.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }
    terminate() { this.frame.remove(); }
  };
}
