// The drop zones of all Load Concept Pictures nodes, and what is pasted while one of them is selected.
import { allNodes } from '../shared/find_library.mjs'
import { PICTURES } from '../shared/kinds.mjs'
import { DropZone } from './zone.mjs'

export function pictures({ app, api, t }) {
  const zones = new WeakMap() // by node

  function refreshAll(isNew) {
    for (const node of allNodes(app)) zones.get(node)?.refresh(isNew)
  }

  // The node whose zone has the focus, or that alone is selected.
  function target() {
    const nodes = allNodes(app).filter((node) => zones.has(node))
    const chosen = Object.values(app.canvas.selected_nodes)
    return nodes.find((node) => zones.get(node).element.contains(document.activeElement)) ??
      (chosen.length === 1 ? nodes.find((node) => node === chosen[0]) : undefined)
  }

  return {
    setup() {
      api.addEventListener('graphChanged', () => refreshAll(false))
      api.addEventListener('reconnected', () => refreshAll(true))
      // Before the host, which would make a node of its own for each picture.
      document.addEventListener('paste', (event) => {
        const files = [...event.clipboardData?.files ?? []]
        const node = files.length ? target() : undefined
        if (!node) return
        event.preventDefault()
        event.stopImmediatePropagation()
        zones.get(node).add(files)
      }, true)
    },
    nodeCreated(node) {
      if (node.comfyClass === PICTURES) zones.set(node, new DropZone(node, { app, api, t }))
    },
    afterConfigureGraph: () => refreshAll(false),
    refreshComboInNodes: () => refreshAll(true)
  }
}
