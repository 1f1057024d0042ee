// Puts a concept of a library into the graph being looked at: into an Apply node's text, or as a new pair of nodes.
import { APPLY } from '../picker/picker.mjs'
import { change, parse } from '../picker/selection.mjs'
import { LIBRARY, libraryOf } from './find_library.mjs'

export const DRAGGED = 'application/x-seqlora-concept'
export const LOAD = 'SeqLoRA_LoadLibrary'
const GAP = 60 // between nodes, in the graph's units

export function placing({ app, t, shelf }) {
  // At a place of the graph, as from a drop: [x, y].
  async function placeAt(place, dragged) {
    const node = app.canvas.graph.getNodeOnPos(...place)
    await (node?.type === APPLY ? addTo(node, dragged) : addPair(place, dragged))
  }

  // Without a pointer: into the Apply node that is selected, else in the middle of what is seen.
  async function place(dragged) {
    const chosen = Object.values(app.canvas.selected_nodes).filter(({ type }) => type === APPLY)
    if (chosen.length === 1) return addTo(chosen[0], dragged)
    const { left, top, width, height } = app.canvas.canvas.getBoundingClientRect()
    const [x, y] = app.clientPosToCanvasPos([left + width / 2, top + height / 2])
    addPair([x - 200, y - 100], dragged)
  }

  async function addTo(apply, { library, concept }) {
    const text = apply.widgets.find(({ name }) => name === 'concepts')
    if (apply.inputs.some(({ name, link }) => name === 'concepts' && link != null)) return tell('warn', 'picker.elsewhere')
    const used = libraryOf(app, apply)
    if (used && used !== library) return tell('warn', 'library.other', { used, library })
    const known = (await shelf.library(library)).concepts.map(({ name }) => name)
    if (used !== null && parse(text.value, known).on.has(concept)) return tell('info', 'library.isOn', { concept })
    asOne(() => {
      // A node without a library has not been set up: its '*' is nobody's choice.
      const before = used === null && text.value.trim() === '*' ? '' : text.value
      if (used === null) connect(makeLoad([apply.pos[0], apply.pos[1]], library, true), apply)
      text.value = change(before, known, concept, 1)
    })
    tell('success', 'library.added', { concept })
  }

  function addPair(place, { library, concept }) {
    asOne(() => {
      const load = makeLoad(place, library)
      const apply = makeNode(APPLY, [load.pos[0] + load.size[0] + GAP, load.pos[1]])
      apply.widgets.find(({ name }) => name === 'concepts').value = concept
      connect(load, apply)
      app.canvas.selectNode(apply) // the next one goes into it
    })
    tell('success', 'library.added', { concept })
  }

  function makeLoad([x, y], library, before = false) {
    const load = makeNode(LOAD, [x, y])
    if (before) load.pos = [x - load.size[0] - GAP, y]
    load.widgets.find(({ name }) => name === 'name').value = library
    return load
  }

  function makeNode(kind, place) {
    const node = window.LiteGraph.createNode(kind)
    node.pos = place
    app.canvas.graph.add(node)
    return node
  }

  function connect(load, apply) {
    const output = load.outputs.findIndex(({ type }) => type === LIBRARY)
    load.connect(output, apply, apply.inputs.findIndex(({ type }) => type === LIBRARY))
  }

  // One step for undo.
  function asOne(act) {
    app.canvas.emitBeforeChange()
    try {
      act()
    } finally {
      app.canvas.emitAfterChange()
      app.canvas.setDirty(true, true)
    }
  }

  function tell(severity, key, values) {
    app.extensionManager.toast.add({ severity, summary: t(key, values), life: 4000 })
  }

  return { place, placeAt }
}

// Drops onto the graph. The host's own listener, which takes what is dropped for a file, leaves what is handled before it.
export function listenForDrops(app, onDrop) {
  const isOurs = (event) => event.dataTransfer?.types.includes(DRAGGED)
    && app.canvas.canvas.parentElement.contains(event.target)
    && !event.target.closest('.side-bar-panel')
  document.addEventListener('dragover', (event) => {
    if (!isOurs(event)) return
    event.preventDefault()
    event.dataTransfer.dropEffect = 'copy'
  }, true)
  document.addEventListener('drop', (event) => {
    if (!isOurs(event)) return
    event.preventDefault()
    onDrop(app.clientPosToCanvasPos([event.clientX, event.clientY]), JSON.parse(event.dataTransfer.getData(DRAGGED)))
  }, true)
}
