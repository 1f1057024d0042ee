// On Load Concept Library: that the library it names is not on this machine, as soon as the workflow is opened, and what to do.
import { make } from '../shared/dom.mjs'
import { forwardToCanvas, hosted } from '../shared/dom_widget.mjs'
import { allNodes } from '../shared/find_library.mjs'
import { LOAD } from '../shared/kinds.mjs'
import { openShelf } from '../shared/libraries.mjs'

export function missing({ app, api, t }) {
  const shelf = openShelf(api)
  const notes = new WeakMap() // node -> what takes its note away

  async function refresh() {
    if (!loaders().length) return
    const known = await shelf.libraries().catch(() => null)
    if (!known) return // nothing is known, so nothing is said
    const names = known.map(({ name }) => name)
    for (const node of loaders()) look(node, names) // those of before may be gone
  }

  const loaders = () => allNodes(app).filter(({ type }) => type === LOAD)

  function look(node, names) {
    const name = node.widgets.find((widget) => widget.name === 'name')?.value
    const isLinked = node.inputs.some((input) => input.name === 'name' && input.link != null)
    const sentence = !name || isLinked || names.includes(name) ? '' : t('library.missing', { library: name })
    if (notes.get(node)?.sentence === sentence) return
    notes.get(node)?.remove()
    notes.delete(node)
    if (sentence) notes.set(node, addNote(node, sentence))
  }

  function addNote(node, sentence) {
    const element = make('div', {}, make('p', { class: 'seqlora-missing', role: 'alert' }, sentence))
    forwardToCanvas(element, app)
    return { sentence, ...hosted(app, node, 'missing', element) }
  }

  return {
    setup() {
      api.addEventListener('graphChanged', refresh)
      shelf.onChange(refresh)
    },
    afterConfigureGraph: refresh,
    nodeCreated(node) {
      if (node.comfyClass !== LOAD) return
      const widget = node.widgets.find(({ name }) => name === 'name')
      const { callback } = widget
      widget.callback = function (...given) {
        const result = callback?.apply(this, given)
        refresh()
        return result
      }
    }
  }
}
