// An element on a node, in both renderers, of which nothing is saved: neither a value nor the room that it takes.
const MARGIN = 8

let made = 0

const inVue = () => LiteGraph.vueNodesMode

// A name for a kind of widget that nothing else has: Nodes 2.0 would go on showing the element of a node that undo replaced, if
// its widget were of the same type.
function ownType(name) {
  return `${name}_${made++}`
}

// A widget that shows `element` on `node` and has no value. It stays out of the host's side panel, which shows the widgets of a
// selected node too; panels that do not know of `hideInPanel` take the element away, or give the widget their own width for good.
export function addElement(node, name, element, options) {
  const widget = node.addDOMWidget(name, ownType(`seqlora_${name}`), element, { serialize: false, hideInPanel: true, ...options })
  widget.serialize = false
  Object.defineProperty(widget, 'width', { get: () => undefined, set: () => {}, configurable: true })
  return widget
}

// Puts `element` at the end of `node`. The answer: `room` takes a change of the element's content and makes room for it, `remove`
// leaves the node as if it had never been there.
export function hosted(app, node, name, element) {
  const content = element.firstElementChild
  let own = node.size[1] // height without the element
  let fitted = own // height that the element and its node agreed on
  let height = 40 // of the content; what is out of sight has none, and keeps its last

  const tall = () => height + 2 * MARGIN
  const widget = addElement(node, name, element, { hideOnZoom: false, margin: MARGIN, getMinHeight: tall, getMaxHeight: tall })

  // What the height changed by since is the user's doing.
  function adopt() {
    own += node.size[1] - fitted
    fitted = node.size[1]
  }

  function fit() {
    if (!inVue()) { // there the host measures elements itself
      adopt()
      const wanted = Math.max(own, node.computeSize()[1])
      if (wanted !== node.size[1]) node.setSize([node.size[0], wanted])
      app.canvas.setDirty(true, true) // not the node's graph, which may be a subgraph that is not open
    }
    fitted = node.size[1]
  }

  const observer = new ResizeObserver(() => {
    if (!content.offsetHeight) return
    height = content.offsetHeight
    fit()
  })
  observer.observe(content)
  fit()

  const { onSerialize } = node
  node.onSerialize = function (saved) {
    onSerialize?.call(this, saved)
    adopt()
    saved.size[1] = own
  }

  function room(change) {
    adopt()
    change()
  }

  function remove() {
    adopt()
    observer.disconnect()
    node.onSerialize = onSerialize
    node.removeWidget(widget)
    node.setSize([node.size[0], own])
    app.canvas.setDirty(true, true)
  }

  return { room, remove }
}

// Over an element in the classic renderer the wheel zooms and the middle button pans, as over the rest of the canvas. Nodes
// 2.0 does so by itself.
export function forwardToCanvas(element, app) {
  const forward = (event, to) => { if (!inVue()) app.canvas[to](event) }
  element.addEventListener('wheel', (event) => { forward(event, 'processMouseWheel') }, { passive: false })
  element.addEventListener('pointerdown', (event) => { if (event.button === 1) forward(event, 'processMouseDown') })
  element.addEventListener('pointermove', (event) => { if (event.buttons & 4) forward(event, 'processMouseMove') })
  element.addEventListener('pointerup', (event) => { if (event.button === 1) forward(event, 'processMouseUp') })
}
